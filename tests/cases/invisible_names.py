"""Prompts of emoji: what their files are called.

Right: a name that can be seen (`video` where nothing is left). Wrong: a name that is one invisible
character, because marks that only belong to a dropped character (U+FE0F) stay.
"""

import sys
import unicodedata

from fastvideo_lightning.output.files import safe_stem

PROMPTS = (
    "\u2764\ufe0f",
    "\U0001f3f3\ufe0f\u200d\U0001f308",
    "\u2600\ufe0f sun",
    "1\ufe0f\u20e3",
)
problems = []
for prompt in PROMPTS:
    stem = safe_stem(prompt)
    seen = [c for c in stem if unicodedata.category(c)[0] in "LN"]
    alone = unicodedata.category(stem[0])[0] == "M"
    if not seen or alone:
        problems.append(f"{prompt!a} becomes {stem!a}")
print("\n".join(problems) or "ok")
sys.exit(bool(problems))
