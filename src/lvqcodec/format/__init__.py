# SPDX-License-Identifier: Apache-2.0
"""Bytes of an lvq file, with the standard library alone."""
