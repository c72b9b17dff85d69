"""Size of the parts in which a CPU works through an array, so that what a part becomes stays in its cache."""


def part_size(count: int, most: int) -> int:
    """The largest divisor of `count` that is not above `most`; `count` itself if that divisor is below `most` / 4.

    Very small parts would cost more time than the cache saves.
    """
    size = max((size for size in range(1, min(count, most) + 1) if count % size == 0), default=count)
    return size if 4 * size >= most else count
