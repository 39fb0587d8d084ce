# SPDX-License-Identifier: Apache-2.0
"""Memory: what is needed, what there is, and who is admitted."""
