"""What a gateway hands on, made visible in a browser: as received, painted, and with what cannot be seen drawn in.

gateway --newest frame--> painting.py --view--> broadcast.py --websocket--> static/
                                        +------> recording.py --> mp4.py or gif.py

painting.py      frame -> three pictures                 guard.py        who may look
facts.py         what is known beside them               application.py  the pages and the websocket
broadcast.py     newest view to everybody who looks      serving.py      gateway, painter and server on one loop
recording.py     films that stay playable
"""
