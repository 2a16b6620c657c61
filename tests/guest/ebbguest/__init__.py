# SPDX-License-Identifier: BSD-3-Clause
"""Real Linux guests under an unmodified QEMU, for the demo and the integration tests.

process   what a run starts and makes, and the one place that cleans it up again
qmp       line-wise JSON with QEMU
guest     a QEMU with a Linux guest, and commands run in it
redis     Redis in the guest: values that follow from their keys, checked byte by byte
ebb       an instance of ebbd in a folder, asked through ebbctl
display   progress, on a terminal or in a log
"""
