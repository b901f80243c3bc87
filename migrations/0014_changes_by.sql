-- What one operator did is found without reading what all the others did.
create index operator_changes_by on operator_changes (changed_by, id);
