"""A rule that knows the subject of recipe image-subject by its colours. How such a file is used: scene_rules.py."""

from genalign.lab.subject import likeness
from genalign.reward import reward


@reward
def subject_drawn(image):
    """How like the subject the likest thing in each picture is, in [0,1]; the recipe's held-out judge."""
    return [likeness(picture) for picture in image.permute(0, 2, 3, 1).float().numpy()]
