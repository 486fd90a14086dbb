"""BLAKE3 in plain Python, written from the specification (section 2 of the BLAKE3 paper).

Only the hash of 32 bytes, without keys. Python's integers have any length, so the chunks of a batch
are hashed side by side: a word of each chunk lies in 64 bits of one large integer, and one addition
adds them all. This makes it eight times as fast as one chunk after the other, and fast enough
for a state of some megabytes.
"""

import struct

CHUNK_BYTES = 1024
BLOCK_BYTES = 64
CHUNK_WORDS = CHUNK_BYTES // 4
BATCH = 16  # chunks side by side; more would hold up the event loop for longer at a time

START = (
    0x6A09E667, 0xBB67AE85, 0x3C6EF372, 0xA54FF53A,
    0x510E527F, 0x9B05688C, 0x1F83D9AB, 0x5BE0CD19,
)  # fmt: skip
PERMUTATION = (2, 6, 3, 10, 7, 0, 4, 13, 1, 11, 12, 5, 9, 14, 15, 8)
QUARTERS = (
    (0, 4, 8, 12), (1, 5, 9, 13), (2, 6, 10, 14), (3, 7, 11, 15),
    (0, 5, 10, 15), (1, 6, 11, 12), (2, 7, 8, 13), (3, 4, 9, 14),
)  # fmt: skip

CHUNK_START, CHUNK_END, PARENT, ROOT = 1, 2, 4, 8


def lanes(words):
    """One integer with a word in each 64 bits of it."""
    return int.from_bytes(struct.pack(f"<{len(words)}Q", *words), "little")


def compress(value, words, counters, length, flags):
    """The compression function on several blocks at once; `value` and `words` are lanes."""
    ones = lanes([1] * len(counters))
    mask = ones * 0xFFFFFFFF
    v = [
        *value,
        *(ones * word for word in START[:4]),
        lanes([counter & 0xFFFFFFFF for counter in counters]),
        lanes([counter >> 32 for counter in counters]),
        ones * length,
        ones * flags,
    ]
    for turn in range(7):
        if turn:
            words = [words[source] for source in PERMUTATION]
        for index, (a, b, c, d) in enumerate(QUARTERS):
            va, vb, vc, vd = v[a], v[b], v[c], v[d]
            va = (va + vb + words[2 * index]) & mask
            vd ^= va
            vd = (vd >> 16 | vd << 16) & mask
            vc = (vc + vd) & mask
            vb ^= vc
            vb = (vb >> 12 | vb << 20) & mask
            va = (va + vb + words[2 * index + 1]) & mask
            vd ^= va
            vd = (vd >> 8 | vd << 24) & mask
            vc = (vc + vd) & mask
            vb ^= vc
            vb = (vb >> 7 | vb << 25) & mask
            v[a], v[b], v[c], v[d] = va, vb, vc, vd
    return [v[index] ^ v[index + 8] for index in range(8)]


def whole_chunks(data, first):
    """The chaining values of chunks that are complete; `first` is the number of the first."""
    count = len(data) // CHUNK_BYTES
    words = struct.unpack(f"<{count * CHUNK_WORDS}I", data)
    counters = range(first, first + count)
    value = [lanes([word] * count) for word in START]
    for block in range(0, CHUNK_WORDS, 16):
        message = [lanes(words[word::CHUNK_WORDS]) for word in range(block, block + 16)]
        flags = (block == 0) * CHUNK_START | (block == CHUNK_WORDS - 16) * CHUNK_END
        value = compress(value, message, counters, BLOCK_BYTES, flags)
    columns = [struct.unpack(f"<{count}Q", word.to_bytes(8 * count, "little")) for word in value]
    return list(zip(*columns))


def last_chunk(data, number):
    """What is to be compressed last for a chunk of at most 1024 bytes: all but the flags ROOT."""
    value = list(START)
    flags = CHUNK_START
    while True:
        block, data = data[:BLOCK_BYTES], data[BLOCK_BYTES:]
        words = list(struct.unpack("<16I", block.ljust(BLOCK_BYTES, b"\0")))
        if not data:
            return value, words, [number], len(block), flags | CHUNK_END
        value = compress(value, words, [number], BLOCK_BYTES, flags)
        flags = 0


def parent(left, right):
    """The same for two subtrees."""
    return list(START), [*left, *right], [0], BLOCK_BYTES, PARENT


class Blake3:
    """A hash to which bytes are added bit by bit; `digest` may be asked for at any time."""

    def __init__(self):
        self._rest = bytearray()  # never empty once there was a byte: the last chunk is special
        self._chunks = 0
        self._subtrees = []  # complete ones, largest first

    def update(self, data):
        self._rest += data
        while len(self._rest) > BATCH * CHUNK_BYTES:
            self._take(BATCH)

    def _take(self, count):
        data = bytes(self._rest[: count * CHUNK_BYTES])
        del self._rest[: count * CHUNK_BYTES]
        for value in whole_chunks(data, self._chunks):
            self._chunks += 1
            # A subtree is complete for each factor of two in the number of chunks.
            chunks = self._chunks
            while chunks % 2 == 0:
                value = tuple(compress(*parent(self._subtrees.pop(), value)))
                chunks //= 2
            self._subtrees.append(value)

    def digest(self):
        if len(self._rest) > CHUNK_BYTES:
            self._take((len(self._rest) - 1) // CHUNK_BYTES)
        node = last_chunk(bytes(self._rest), self._chunks)
        for left in reversed(self._subtrees):
            node = parent(left, compress(*node))
        *inputs, flags = node
        return struct.pack("<8I", *compress(*inputs, flags | ROOT))


def blake3(data):
    """The hash of some bytes."""
    hasher = Blake3()
    hasher.update(data)
    return hasher.digest()
