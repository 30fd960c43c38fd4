-- Ten parts, not five, are merged into one. To choose them the engine counts each part as 5 MiB larger than it is, so a month of a
-- few megabytes is taken for one more small part and written again with every fifth insert. With ten a row is written again about
-- half as often, and a month that is being written to lies in about ten parts in the place of seven. Once nothing comes any more
-- the engine lowers the number by itself, within an hour.
ALTER TABLE samples MODIFY SETTING merge_selector_base = 10;
