"""What a picture cannot show, drawn onto it: sound as rings and heat, air and light as mood and gauges.

beams.py    four microphones -> where the sound comes from (delay and sum)
sound.py    level and loudest tone as rings; a sound map as heat
mood.py     temperature, humidity and light as tint, haze and darkness
gauges.py   readings as numbers with a scale and a word
"""

from modicum.apps.pixelgen.overlay.beams import Field, beam_map
from modicum.apps.pixelgen.overlay.gauges import gauges
from modicum.apps.pixelgen.overlay.mood import mood
from modicum.apps.pixelgen.overlay.sound import heat, rings

__all__ = ["Field", "beam_map", "gauges", "heat", "mood", "rings"]
