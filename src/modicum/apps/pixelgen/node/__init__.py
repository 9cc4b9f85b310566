"""A sensor node in software: what the original's hardware would have sent of the same scene.

pictures.py   images, folders, videos, a webcam      sensors.py   temperature, humidity, pressure, light
camera.py     optics, exposure, noise                sound.py     level, loudest tone, mel bands
node.py       all of it, once per period
"""

from modicum.apps.pixelgen.node.camera import Camera, CameraSettings
from modicum.apps.pixelgen.node.node import Capture, Node, NodeSettings
from modicum.apps.pixelgen.node.pictures import pictures

__all__ = ["Camera", "CameraSettings", "Capture", "Node", "NodeSettings", "pictures"]
