# SPDX-License-Identifier: Apache-2.0
"""What only the encoder decides: rate, effort, the latents themselves."""
