"""What flows through Lineshaft: samples and blocks, what is configured, topics, tables. Shapes
only.

Read `samples`, `points`, `blocks` first; `envelope` and `topics` say how a record lies on the log,
`tables` and `migrations/` how it rests in the store, `catalogue` what is configured, `queries` what
can be asked.
"""
