# SPDX-License-Identifier: Apache-2.0
"""Folders of pictures to rate-distortion points, beside other codecs."""
