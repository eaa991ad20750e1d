"""Stands in for label-studio-ml 2, which no package index has: written from its documentation, for its interface alone.

What it stands on is real: the label config's parser, predictions' classes and the finding of files are the SDK's.
"""
