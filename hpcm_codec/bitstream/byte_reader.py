"""Reads numbers and byte strings of the container in sequence, and never past the end of the data.

>>> reader = ByteReader(memoryview(varint_bytes(300) + b"abc"), 0)
>>> reader.varint("the example"), bytes(reader.take(3, "the example"))
(300, b'abc')
"""

from __future__ import annotations

from hpcm_codec.errors import CorruptStreamError, CutShortError

LARGEST_NUMBER = 2**31 - 1  # of a varint: picture sides and payload lengths
LONGEST_VARINT = 5
DAMAGED = "get the file again from where it came from"


def counted(count: int) -> str:
    """A number of bytes, in words."""
    return "1 byte" if count == 1 else f"{count} bytes"


def varint_bytes(number: int) -> bytes:
    """Unsigned LEB128: seven bits a byte, lowest first, the top bit set on all bytes but the last. Raises ValueError."""
    if not 0 <= number <= LARGEST_NUMBER:
        raise ValueError(f"{number} is not in 0 .. {LARGEST_NUMBER}")
    written = bytearray()
    while number > 0x7F:
        written.append(number & 0x7F | 0x80)
        number >>= 7
    written.append(number)
    return bytes(written)


class ByteReader:
    """Reads data from an offset on. Each read advances the offset.

    part: what is being read, for the CorruptStreamError that all methods raise when the data ends or is invalid.
    """

    def __init__(self, data: memoryview, offset: int) -> None:
        self.data = data
        self.offset = offset

    def require(self, count: int, part: str) -> None:
        missing = self.offset + count - len(self.data)
        if missing > 0:
            raise CutShortError(f"cut short in {part}: at least {counted(missing)} missing", advice=DAMAGED)

    def take(self, count: int, part: str) -> memoryview:
        self.require(count, part)
        self.offset += count
        return self.data[self.offset - count : self.offset]

    def number(self, size: int, part: str) -> int:
        return int.from_bytes(self.take(size, part), "little")

    def varint(self, part: str) -> int:
        number = 0
        for place in range(LONGEST_VARINT):
            byte = self.number(1, part)
            number |= (byte & 0x7F) << (7 * place)
            if byte < 0x80:
                if byte == 0 and place > 0:
                    raise CorruptStreamError(f"damaged: a number in {part} is not in its shortest form", advice=DAMAGED)
                break
        else:
            raise CorruptStreamError(f"damaged: a number in {part} is too long", advice=DAMAGED)
        if number > LARGEST_NUMBER:
            raise CorruptStreamError(f"damaged: a number in {part} is above {LARGEST_NUMBER}", advice=DAMAGED)
        return number
