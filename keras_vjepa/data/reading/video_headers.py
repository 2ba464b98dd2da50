"""Check what a file is by its first bytes, before a video decoder sees it (§3.4).

FFmpeg, which decodes for both of our libraries, takes a text that lists other files for a video of
their frames, whatever the text's own name is, and such a list may name any file. So a file that
begins as text, or with the words by which FFmpeg knows a list, is refused here.
"""

# Words at the beginning of files that list other files: concat, HLS, DASH, IMF and SDP. FFmpeg
# looks for them up to the first zero byte.
_WORDS_OF_LISTS = (b"ffconcat", b"#extm3u", b"<mpd", b"<compositionplaylist", b"c=in ip")
# A raw video whose header is text.
_IN_WORDS = b"YUV4MPEG2 "
_TEXT = bytes({*range(32, 256), *b"\t\n\r\f\x1b"} - {127})
_LOOKED_AT = 4096
# The number of bytes that FFmpeg inspects to determine the type of a file.
_PROBED = 2**20


def check_is_no_list(path: str) -> None:
    """Check that a file is not text, and not a list that names other files.

    Args:
        path: the file.

    Raises:
        ValueError: if it is; the message says which.
    """
    with open(path, "rb") as file:
        head = file.read(_LOOKED_AT)
        while head[:3] == b"ID3" and len(head) >= 10:  # FFmpeg skips such tags, also several
            first, second, third, last = (byte & 0x7F for byte in head[6:10])
            size = first << 21 | second << 14 | third << 7 | last
            file.seek(file.tell() - len(head) + 10 + size)
            head = file.read(_LOOKED_AT)
        if b"\0" not in head:
            head += file.read(_PROBED - len(head))
    words, zero, _ = head.partition(b"\0")
    if any(word in words.lower() for word in _WORDS_OF_LISTS):
        raise ValueError("no video is found in it, but a list of other files")
    if not zero and not words.startswith(_IN_WORDS) and not words.translate(None, _TEXT):
        raise ValueError("no video is found in it, but text")
