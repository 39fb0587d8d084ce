# SPDX-License-Identifier: Apache-2.0
"""How many pictures are coded at once."""

import threading
import time

import pytest

from lvqcodec.batch.room import Room


def most_at_once(room, needs):
    """Run a thread for each need; return the most bytes and the most threads inside at a time."""
    lock, inside, most = threading.Lock(), [], [0, 0]

    def work(need):
        with room.take(need):
            with lock:
                inside.append(need)
                most[:] = max(most[0], sum(inside)), max(most[1], len(inside))
            time.sleep(0.01)
            with lock:
                inside.remove(need)

    threads = [threading.Thread(target=work, args=(need,)) for need in needs]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=20)
        assert not thread.is_alive()
    return tuple(most)


def test_no_more_than_places():
    assert most_at_once(Room(3, None), [10**12] * 20)[1] == 3


def test_no_more_than_fits():
    bytes_inside, threads_inside = most_at_once(Room(8, 100), [40, 40, 40, 30] * 6)
    assert bytes_inside <= 100 and 2 <= threads_inside <= 3


def test_what_never_fits_goes_alone():
    bytes_inside, threads_inside = most_at_once(Room(8, 100), [500, 60, 500, 60])
    assert (bytes_inside, threads_inside) == (500, 1)


def test_an_error_leaves_room():
    room = Room(1, 10)
    with pytest.raises(KeyError), room.take(10):
        raise KeyError
    assert most_at_once(room, [10, 10]) == (10, 1)
