# SPDX-License-Identifier: Apache-2.0
"""Probability rows and the range coder: the only part that decides bytes; free of torch."""
