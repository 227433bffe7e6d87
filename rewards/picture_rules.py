"""Rules that need no prompt: what a picture looks like. How such a file is used: scene_rules.py."""

from genalign.reward import reward


@reward
def colourful(image):
    """Colourfulness (Hasler and Suesstrunk, 2003): spread and size of the two opponent colours; 0 for gray."""
    red, green, blue = image.float().unbind(1)  # (B,H,W) each
    opponents = [(red - green).flatten(1), ((red + green) / 2 - blue).flatten(1)]
    spread = sum(x.var(1, correction=0) for x in opponents).sqrt()
    size = sum(x.mean(1).square() for x in opponents).sqrt()
    return spread + 0.3 * size


@reward
def light(image):
    """How near to white: the darkest of a pixel's three colours, on average; 0 for black and for any pure colour."""
    return image.float().amin(1).flatten(1).mean(1)
