"""EmojiWorld: a small world that is really verifiable, and the builders of the tiny models in assets/."""
