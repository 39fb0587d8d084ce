# SPDX-License-Identifier: Apache-2.0
"""Picture files <-> `Picture`."""
