-- Which version of a template was sent when: lines are added and never changed.
create table email_template_activations (
    id bigint generated always as identity primary key,
    template_key varchar(100) not null,
    -- null: from here on the template was not sent at all
    version int,
    -- the line that a roll back from here returns to: a roll back takes over that of the line it returns to, so that rolling
    -- back twice goes back twice, instead of to and fro
    back_to bigint references email_template_activations,
    activated_by varchar(100) not null,
    at timestamptz not null default now(),
    foreign key (template_key, version) references email_template_versions (template_key, version)
);
create index email_template_activations_key on email_template_activations (template_key, id);
create trigger never_changed before update on email_template_activations
    for each row execute function refuse_to_rewrite();

-- What is active already begins the history.
insert into email_template_activations (template_key, version, activated_by, at)
select t.key, t.version, 'sync', t.updated_at from email_templates t
join email_template_versions v on v.template_key = t.key and v.version = t.version
where t.is_active order by t.updated_at;

-- A version is immutable.
create trigger never_changed before update on email_template_versions
    for each row execute function refuse_to_rewrite();

-- What kinds of values some variables are, with no value among them: what a template is linted against leaves the database
-- like this. Names that could not be a template's (a map with an address for its key) are left out.
create function shape_of(value jsonb, depth int default 0) returns jsonb
language plpgsql immutable strict parallel safe as $$
begin
    case jsonb_typeof(value)
        when 'object' then
            if depth >= 8 then return '{}'; end if;
            return (select coalesce(jsonb_object_agg(e.key, shape_of(e.value, depth + 1)), '{}')
                from jsonb_each(value) e where e.key ~ '^[A-Za-z_][A-Za-z0-9_]{0,99}$');
        when 'array' then
            if depth >= 8 then return '[]'; end if;
            return (select coalesce(jsonb_agg(distinct shape_of(e.value, depth + 1)), '[]')
                from (select a.value from jsonb_array_elements(value) a limit 20) e);
        when 'string' then
            return case when value #>> '{}' = '' then '"empty"' when value #>> '{}' ~* '^\s*https?://[^\s/]' then '"url"'
                else '"string"' end;
        else
            return to_jsonb(jsonb_typeof(value));
    end case;
end
$$;
