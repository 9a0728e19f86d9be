"""The command line's parts; ``skcryo.__main__`` holds the parser. Nothing here is public."""
