"""Numbers as the pages write them: three significant digits, a true minus sign, and never a sign by colour alone.

Columns keep zeros at the end, so that their digits stand below each other; ticks, edges and limits are short.
"""

import math


def number(value: float) -> str:
    """Write a value with three significant digits.

    >>> number(0.03125), number(0.5), number(999.7), number(-12345.6), number(12), number(5e-05)
    ('0.0312', '0.500', '1,000', '−12,300', '12', '5.00e−5')
    """
    return short(value) if isinstance(value, int) or value == 0 else _written(value, 3)


def short(value: float, digits: int = 3) -> str:
    """Write a value with at most so many significant digits, without zeros at the end.

    >>> short(0.5), short(1e-05), short(0.03125, 6), short(120.0), short(-0.0)
    ('0.5', '1e−5', '0.03125', '120', '0')
    """
    mantissa, e, exponent = _written(value + 0.0, digits).partition("e")
    return (mantissa.rstrip("0").rstrip(".") if "." in mantissa else mantissa) + e + exponent


def _written(value: float, digits: int) -> str:
    if not math.isfinite(value):
        return "undefined" if math.isnan(value) else "∞" if value > 0 else "−∞"
    mantissa, _, power = f"{value:.{digits - 1}e}".partition("e")
    places = digits - 1 - int(power)
    fixed = f"{round(value, places):,.{max(0, places)}f}"
    return (fixed if -5 < int(power) < 9 else f"{mantissa}e{int(power)}").replace("-", "−")


def signed(value: float) -> str:
    """Write a value with its sign.

    >>> signed(0.5), signed(-0.5), signed(0.0)
    ('+0.500', '−0.500', '0')
    """
    return f"+{number(value)}" if value > 0 else number(value + 0.0)


def percent(share: float) -> str:
    """Write a share.

    >>> percent(0.28865), percent(0.00001234), percent(1.0), percent(0)
    ('28.9 %', '0.00123 %', '100 %', '0 %')
    """
    return f"{number(100 * share)} %"


def count(value: int) -> str:
    """Write a whole number.

    >>> count(166109)
    '166,109'
    """
    return f"{value:,}".replace("-", "−")
