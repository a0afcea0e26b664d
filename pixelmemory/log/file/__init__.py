"""The write-ahead log on this disk: what a store is rebuilt from.

    submit -> buffer -> writer thread: one frame, one sync -> on_commit
                                     '-> tail (memory) -> read
                                     '-> segments      -> read

Files, all in the store's folder, 0600 in folders 0700::

    LOCK                           flock, held for life; holds the owner's pid
    MANIFEST                       what the store is; replaced atomically
    log/00000000000000000001.log   segment; its name is its first LSN, 20 digits
    log/00000000000000081920.log   the next one
    log/*.log.tmp                  a segment in the making, or what an interrupted open left: removed at open
    log.new/, log.old/             a rewritten log in the making, and what it replaced: settled at open
    quarantine/<segment>.<byte>.<crc32>   what was dropped from the end of that segment, from that byte on

Format version 1. Integers are little-endian; checksums are ``zlib.crc32``. A segment is a header and frames::

    segment header, 128 bytes            frame, a multiple of 64 bytes          record
     0  magic "PXMEMLOG"      8           0  magic b5 "PMF"          4           0  payload length      u32
     8  format version        u16         4  kind                    u8          4  checksum            u32
    10  algorithm (1 = crc32) u8          5  algorithm               u8          8  type                u16
    11  reserved              1           6  flags                   u16        10  schema version      u8
    12  flags                 u32         8  event count             u32        11  flags               u8
    16  store id (uuid)       16         12  body length             u32        12  event id            16
    32  segment number        u64        16  first LSN               u64        28  logged at (ns)      i64
    40  first LSN             u64        24  durable LSN             u64        36  msgpack payload
    48  durable LSN           u64        32  previous frame's sum    u32
    56  epoch                 u64        36  body checksum           u32
    64  created (ns)          i64        40  salt                    u64
    72  salt                  u64        48  zero sectors            u32
    80  previous: bytes       u64        52  reserved                8
    88  previous: checksum    u32        60  header checksum         u32
    92  reserved              32         64  records, then ff up to a multiple of 64
    124 header checksum       u32

A header checksum covers the header's bytes before it, the body checksum the records with their padding, a record's
checksum everything in the record after it.

- Kinds: 1 events; 2 close, the log was closed properly; 3 seal, the next segment exists. Frames of kind 2 and 3 have no
  body; their first LSN is that of the next event.
- Segment flags: 1, made by an open, so that the segment before it may hold superseded bytes after
  ``previous: bytes``. Frame flags: 1, synced before anything was written after it (``SyncMode.ALWAYS``).
- ``durable LSN``: in a frame, the last LSN that was synced when it was written; in a segment header, the last one that
  was synced when the segment got its name.
- ``previous``: a frame names the header checksum of the frame before it, the first frame that of the segment header,
  and a segment header the length and last checksum of the segment before it. So frames and segments cannot be left
  out, doubled or swapped. The salt is random for each segment and stands in each of its frames, so that no other's is
  taken for one of its own.
- ``zero sectors``: how many 512-byte sectors the frame fills with zeros of its own, so that one that was lost is told
  from one that was written so. A frame header never straddles a sector.
- After the last frame of the active segment there may be zeros, written ahead; a seal or close cuts them off.

Example: the frame of one ``MemoryDeleted(namespace="work", memory_id="m1")``, the first of its log (192 bytes)::

    00  b5 50 4d 46 01 01 01 00 01 00 00 00 44 00 00 00  magic, events, crc32, synced; 1 event; 0x44 bytes
    10  01 00 00 00 00 00 00 00 00 00 00 00 00 00 00 00  first LSN 1; durable LSN 0
    20  44 33 22 11 37 0a bf 37 ef cd ab 89 67 45 23 01  previous; body checksum; salt
    30  00 00 00 00 00 00 00 00 00 00 00 00 dc 69 c2 f8  no zero sectors; reserved; header checksum
    40  20 00 00 00 25 2d 8d d3 03 00 01 00 00 01 02 03  32 bytes of payload; checksum; type 3, version 1; event id
    50  04 05 06 07 08 09 0a 0b 0c 0d 0e 0f 00 00 2a 36  event id; logged at
    60  fe 9c 97 17 83 a1 74 03 a9 6e 61 6d 65 73 70 61  logged at; payload: {"t": 3, "namespace":
    70  63 65 a4 77 6f 72 6b a9 6d 65 6d 6f 72 79 5f 69  "work", "memory_id":
    80  64 a2 6d 31 ff ff ff ff ff ff ff ff ff ff ff ff  "m1"}; padding
    90  ff ff ... to bf

Life of a segment: made under a temporary name with its header, synced, renamed, its folder synced; only then the
segment before it is sealed, and only then a frame is written to it. It grows to ``segment_bytes_max`` (one larger frame
is let in). Each open makes a new active segment: what was not attested in the last one is copied to it and synced
before anything is served, and a last segment of up to 1 MiB is copied whole and so replaced. How an open tells a torn
tail from damage is said in :mod:`pixelmemory.log.file.verification`.
"""
