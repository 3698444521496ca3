-- Close rejected entries that are logged after all.
update rejected_entries set status = 'resolved' where list_contains($ids, id)
