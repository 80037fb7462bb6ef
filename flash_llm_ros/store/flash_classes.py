"""Kinds of flash that robots have, by what they read at best."""

from typing import NamedTuple


class FlashClass(NamedTuple):
    """What a device of its kind gives; `source` says where the figures come from."""

    bytes_per_second: int
    reads_per_second: int
    source: str


FLASH_CLASSES = {
    'sd_a1': FlashClass(90_000_000, 1500, 'SD Physical Layer 5.1, class A1 (random reads); UHS-I '
                        'SDR104 carries 104 MB/s, cards give about 90'),
    'sd_a2': FlashClass(90_000_000, 4000, 'SD Physical Layer 6.0, class A2 (random reads); UHS-I'),
    'emmc': FlashClass(250_000_000, 8000, 'JEDEC JESD84-B51 (eMMC 5.1): HS400 carries 400 MB/s, '
                       'modules of 32 and 64 GB give about 250'),
    'nvme_x1': FlashClass(450_000_000, 100_000, 'one lane of PCIe 2.0 carries 500 MB/s: M.2 on a '
                          'Raspberry Pi 5'),
    'ufs': FlashClass(1_800_000_000, 60_000, 'JEDEC JESD220E (UFS 3.1), two lanes: 2.3 GB/s on the '
                      'bus, modules give about 1.8'),
}
