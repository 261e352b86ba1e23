"""How many there are of something, as people read it."""


def counted(number: int, noun: str) -> str:
    """Return a number and what it counts, in the plural where it is not 1.

    >>> counted(1, "document"), counted(0, "segment"), counted(166109, "token")
    ('1 document', '0 segments', '166,109 tokens')
    """
    return f"{number:,} {noun}{'' if number == 1 else 's'}"
