# SPDX-License-Identifier: Apache-2.0
"""Folders of pictures to folders of files, and back.

stores: where files lie; plan: what becomes of every file; work: one picture, in whichever thread,
process or machine; engines: who works; records: what was done; ledger: which outputs are a batch's
own; budget: which quality for which picture; room: how many at once; run: the whole, as `lvq batch`
calls it.
"""
