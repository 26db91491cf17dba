"""A small random pipeline of every diffusers class that returns frames.

The proportions (which width must equal which) are facts of the models; the sizes are as small as
the models allow.
"""

from support.recipes import (  # noqa: F401  (each enters its recipes)
    cogvideo,
    cosmos,
    hunyuan,
    latest,
    ltx,
    ltx2,
    mochi,
    modular,
    modular_only,
    others,
    pictures,
    unets,
    wan,
)
from support.recipes.recipe import PICTURES, PROMPT, RECIPES, Recipe, as_on_gpu, families

__all__ = ["PICTURES", "PROMPT", "RECIPES", "Recipe", "as_on_gpu", "families"]
