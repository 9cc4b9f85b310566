"""A scene, a node, a radio that loses packets, a gateway and a viewer, in one command.

scene.py   a shore from morning to night, with a boat that hums
stage.py   everything put together, on one event loop
"""

from modicum.apps.pixelgen.demo.scene import Shore
from modicum.apps.pixelgen.demo.stage import Stage, play

__all__ = ["Shore", "Stage", "play"]
