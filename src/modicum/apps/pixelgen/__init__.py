"""PixelGen: a camera that sends little, and an edge machine that paints the rest.

The node captures a small monochrome frame and a few readings (temperature, light, sound), because every byte that
leaves it costs energy. The gateway puts the frame together from what the radio did not lose. The edge machine draws a
colour picture whose structure comes from the frame and whose style comes from the readings.

    node/        photo or video -> what the sensor would have seen; sensors; sound
    radio/       packets, their losses, the links they travel on; the published serial protocol
    gateway/     packets -> frame, validity mask, concealed frame
    modes.py     sizes and depths of a node's picture
    readings.py  what the sensors say
    prompt.py    readings -> tokens and a sentence
    generator/   frame, mask and tokens -> colour picture: a small network with a last stage, or Stable Diffusion
    weights/     the generators that travel with the package, dense and compressed
    energy.py    what a frame costs: a model, not a measurement
    overlay/     sound, air and light drawn onto a picture
    viewer/      all of it in a browser
    demo/        a scene, and everything above in one command

What is drawn is plausible, not true: the raw frame, its mask and its origin stay beside every picture.

Paper: "PixelGen: Rethinking Embedded Camera Systems", arXiv 2402.03390. The camera, its serial
protocol and the sensors follow the published firmware; its radio was not published, so packets, channel and energy
are a design of this package.
"""
