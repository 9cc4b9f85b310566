"""From a frame to what arrives of it: packets, the losses of the air, and the links they travel on.

packets.py      header, checksum, tag            channel.py      loss, bursts, reordering, duplicates, bit errors
framing.py      frame <-> packets, parity        links.py        in-process, UDP
telemetry.py    readings and sound               columns.py      one image column per packet, without a header
serial_text.py  the published ASCII protocol     serial_port.py  its line
"""
