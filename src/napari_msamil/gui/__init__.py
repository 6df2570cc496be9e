"""The napari workbench: the only folder that imports napari, qtpy or magicgui.

What one viewer knows lives in `session`; the panels show it and change it; `work` holds the long jobs as
generators that know no window; `worker` runs them in a thread. Nothing here imports torch when it is opened.
"""
