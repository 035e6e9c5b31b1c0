"""Facts about this machine and about an engine directory, as data; the command g4seg-engine prints them.

`machine` and `gpu`: the hardware. `packages`: what is installed. `trials`: what works here, found out by `trial`
(and `gpu_trial`) in a process of its own. `doctor`: all of these. `inspection`: what an engine directory holds.
`fit`: whether its compiled artefacts run here.
"""
