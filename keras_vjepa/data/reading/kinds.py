"""Tell videos from images by the ends of their names (§3.4, App. D.1)."""

import os

VIDEO_EXTENSIONS = frozenset(
    (
        ".3g2 .3gp .asf .avi .divx .dv .f4v .flv .ivf .m1v .m2t .m2ts .m2v .m4v .mjpeg .mjpg .mkv "
        ".mov .mp4 .mpe .mpeg .mpg .mpv .mts .mxf .ogm .ogv .qt .rm .rmvb .ts .vob .webm .wmv .y4m"
    ).split()
)
IMAGE_EXTENSIONS = frozenset(".bmp .jpeg .jpg .png .tif .tiff .webp".split())


def extension(path: str) -> str:
    """Return the extension of a file's name, in lower case, with its dot."""
    return os.path.splitext(path)[1].lower()


def has_image_extension(path: str) -> bool:
    """Tell whether a file is an image by its extension."""
    return extension(path) in IMAGE_EXTENSIONS
