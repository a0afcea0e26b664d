"""The projection: the log's events as rows of tables.

In the order that data flows::

    changes       events of a batch -> one change a memory (pure)
    batches       a run of events, folded and embedded
    projector     reads the log, prepares, applies, moves the watermark
    dead_letters  finds the event that a batch was refused for
    contract      what the host of the tables owes: written, read, tended, purged
    query         reads, as records
    projection    all of these as one thing, opened against its log
    sql/          what needs PostgreSQL and pgvector alone
    pixeltable/   the host in Pixeltable, and all that imports it
    embed         the embedding function behind each table's index; its path is stored in every index

Nothing of Pixeltable is imported before a store is opened.
"""
