"""The 11 semantic parts of HeadGAP (method 1.1) and the finer regions they are made of."""

from __future__ import annotations

PARTS = ("forehead", "nose", "eye", "teeth", "lip", "ear", "hair", "boundary", "neck", "face", "other")
"""Part names; `face_part` of a head model indexes this tuple. "hair" is the scalp, "boundary" the bust below
the neck, "face" the rest of the face, "other" the mouth cavity, the tongue and the eye sockets."""

REGIONS = (
    "face",
    "scalp",
    "ear",
    "lips",
    "neck",
    "torso",
    "mouth",
    "socket",
    "eye_l",
    "eye_r",
    "teeth_up",
    "teeth_lo",
    "tongue",
    "lash_l",
    "lash_r",
)
"""Region names of the baked model; `face_region` indexes this tuple. The face region holds three parts:
forehead, nose and face."""

PART_OF_REGION = {
    "face": "face",
    "scalp": "hair",
    "ear": "ear",
    "lips": "lip",
    "neck": "neck",
    "torso": "boundary",
    "mouth": "other",
    "socket": "other",
    "eye_l": "eye",
    "eye_r": "eye",
    "teeth_up": "teeth",
    "teeth_lo": "teeth",
    "tongue": "other",
    "lash_l": "eye",
    "lash_r": "eye",
}
