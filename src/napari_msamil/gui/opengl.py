"""What OpenGL gives here, asked in a process of its own: a driver that crashes takes only that one with it.

python -m napari_msamil.gui.opengl
"""

from __future__ import annotations

import sys


def describe_opengl() -> str:
    """Version, renderer and largest texture of the OpenGL that Qt finds.

    Raises:
        RuntimeError: There is none.
    """
    from OpenGL import GL
    from qtpy.QtGui import QGuiApplication, QOffscreenSurface, QOpenGLContext

    app = QGuiApplication.instance() or QGuiApplication(sys.argv[:1])
    platform = QGuiApplication.platformName()
    surface, context = QOffscreenSurface(), QOpenGLContext()
    surface.create()
    if not context.create() or not context.makeCurrent(surface):
        raise RuntimeError(f"no OpenGL context on the platform {platform}")
    words = [
        GL.glGetString(what).decode(errors="replace")
        for what in (GL.GL_VERSION, GL.GL_RENDERER)
    ]
    texture = int(GL.glGetIntegerv(GL.GL_MAX_TEXTURE_SIZE))
    context.doneCurrent()
    del context, surface, app  # in this order: Qt wants its application last
    return (
        f"OpenGL {words[0]}, {words[1]}, textures up to {texture} px, Qt on {platform}"
    )


if __name__ == "__main__":
    sys.stdout.write(describe_opengl() + "\n")
