"""The page: draw, vote, align from votes, inspect; `genalign demo`. Its logic is the package's public functions."""
