"""A second model family, small: another trunk, pictures of any size, other level words, another range of scores.

It is here to prove the seam: a folder like this one and a line in `qalign_fast.families.registry` are all it takes.
"""
