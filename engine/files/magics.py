# SPDX-License-Identifier: Apache-2.0
"""File systems by the number that statfs(2) gives (include/uapi/linux/magic.h, v6.18)."""

PROC_MAGIC = 0x9FA0
PSEUDO_MAGICS = frozenset(
    {
        0x62656572,  # sysfs
        0x27E0EB,  # cgroup
        0x63677270,  # cgroup2
        0x64626720,  # debugfs
        0x74726163,  # tracefs
        0x73636673,  # securityfs
        0xCAFE4A11,  # bpf
        0xF97CFF8C,  # selinux
        0xDE5E81E4,  # efivarfs
        0x62656570,  # configfs
        0x6165676C,  # pstore
    }
)
MQUEUE_MAGIC = 0x19800202
HUGETLBFS_MAGIC = 0x958458F6
FOREIGN_MAGICS = frozenset(
    {
        PROC_MAGIC,
        MQUEUE_MAGIC,
        0x6E736673,  # nsfs
        0x09041934,  # anon_inodefs
        0x50495045,  # pipefs
        0x50494446,  # pidfs
        0x534F434B,  # sockfs
        0x5345434D,  # secretmem
        0x444D4142,  # dma_buf
    }
)
"""Other kinds know them, or `unknown.py` refuses them."""
