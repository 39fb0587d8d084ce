# SPDX-License-Identifier: Apache-2.0
"""Folders of pictures to folders of files, and back.

stores: where files lie; plan: which are coded, and to what; work: one picture, in whichever thread,
process or machine; engines: who works; records: what was done; budget: which quality for which
picture; run: the whole, as `lvq batch` calls it.
"""
