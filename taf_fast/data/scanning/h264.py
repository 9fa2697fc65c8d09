"""What the header of an H.264 stream says of its packets."""

import re

# Profiles whose header also describes the format of the colours (ITU-T H.264, 7.3.2.1.1).
_HIGH = (44, 83, 86, 100, 110, 118, 122, 128, 134, 135, 138, 139, 244)


def has_whole_frames(header: bytes) -> bool:
    """Whether every picture of a stream is a whole frame; False also if the header does not tell.

    ``header`` is that of mp4 and Matroska (avcC), or its units as in a raw stream. The pictures of other
    streams may be fields, two of which make a frame.
    """
    try:
        if header[:1] == b"\1":
            units = [header[8 : 8 + int.from_bytes(header[6:8], "big")]] if header[5] & 31 == 1 else []
        else:
            units = [unit for unit in re.split(b"\0\0\1", header) if unit and unit[0] & 31 == 7]
        return bool(units) and all(map(_frame_mbs_only, units))
    except IndexError:
        return False


def _frame_mbs_only(unit: bytes) -> bool:
    """The flag of this name in a sequence parameter set; IndexError if the set breaks off."""
    bits = _Bits(re.sub(b"\0\0\3", b"\0\0", unit))
    bits.number(8)
    profile = bits.number(8)
    bits.number(16)
    bits.golomb()
    if profile in _HIGH:
        lists = 8
        if bits.golomb() == 3:  # 4:4:4
            lists = 12
            bits.number(1)
        bits.golomb()
        bits.golomb()
        bits.number(1)
        if bits.number(1):
            for index in range(lists):
                if bits.number(1):
                    bits.scaling_list(16 if index < 6 else 64)
    bits.golomb()
    order_type = bits.golomb()
    if order_type == 0:
        bits.golomb()
    elif order_type == 1:
        bits.number(1)
        bits.golomb()
        bits.golomb()
        for _ in range(bits.golomb()):
            bits.golomb()
    bits.golomb()
    bits.number(1)
    bits.golomb()
    bits.golomb()
    return bool(bits.number(1))


class _Bits:
    """Reads bits one after the other."""

    def __init__(self, content: bytes):
        self._bits = "".join(f"{byte:08b}" for byte in content)
        self._at = 0

    def number(self, length: int) -> int:
        end = self._at + length
        if end > len(self._bits):
            raise IndexError("the bits are at their end")
        value = int(self._bits[self._at : end], 2)
        self._at = end
        return value

    def golomb(self) -> int:
        """A number in Exp-Golomb code."""
        zeros = 0
        while not self.number(1):
            zeros += 1
        return (1 << zeros) - 1 + (self.number(zeros) if zeros else 0)

    def scaling_list(self, length: int) -> None:
        scale = following = 8
        for _ in range(length):
            if following:
                code = self.golomb()
                following = (scale + (-(code // 2) if code % 2 == 0 else (code + 1) // 2)) % 256
            scale = following or scale
