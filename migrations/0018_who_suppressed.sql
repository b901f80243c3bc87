-- Who put an address on the list is its `source` (`operator:<name>`, `ses`, `smtp`, ...), and every change of it is a line of
-- suppression_changes. This column was never written.
alter table suppressions drop column created_by;
