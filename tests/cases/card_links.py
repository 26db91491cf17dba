"""Cards whose link is narrower than 16 lanes are planned with the link that they have.

The bound of a streamed step is the link: twice its speed is half of the time.
"""

import sys

from fastvideo_lightning.plan.machine import find_card

link = find_card("RTX 4060 Ti").link_bytes_per_s / 1e9
print(f"RTX 4060 Ti: {link:.1f} GB/s planned, 16 x 0.86 = 13.8 expected")
missing = []
CARDS = ("4060", "4070", "4070 SUPER", "3070", "3060 Ti", "5070", "2080 Ti")
for name in (*(f"RTX {card}" for card in CARDS), "3060"):
    try:
        find_card(name)
    except ValueError:
        missing.append(name)
print("not known:", missing)
sys.exit(link > 14 or bool(missing))
