"""A page to look at a model in a browser: `safeweights view`.

`viewing` gives what the page shows as data, `server` serves it to one person on this machine, `export`
puts it into one file. The page itself is in ``page/``: plain HTML, CSS and JavaScript, with uPlot (MIT
licence, beside it) for histograms.

Everything that comes out of a model is hostile: the page writes it as text, never as markup, and no
script may run but its own (Content Security Policy).
"""
