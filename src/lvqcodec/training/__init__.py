# SPDX-License-Identifier: Apache-2.0
"""From pictures to a model: recipes, the training loop, export. Nothing that codes imports it."""
