-- Calls for wrk, as bench.py asks for them. Arguments: kind of call, number of the run, users to choose
-- from, members of createUser beside the e-mail and the name.
local threads = 0

function setup(thread)
  thread:set("number", threads)
  threads = threads + 1
end

function init(args)
  kind, run, users, members, calls = args[1], args[2], tonumber(args[3]), args[4], 0
  math.randomseed(tonumber(run) * 64 + number)
end

function request()
  local call
  if kind == "get" then
    call = '{"method":"getUserByEmail","params":{"email":"user' .. math.random(users) .. '@example.com"}}'
  else
    calls = calls + 1
    call = '{"method":"createUser","params":{"email":"new' .. run .. "-" .. number .. "-" .. calls ..
      '@example.com","displayName":"Bench User",' .. members .. '}}'
  end
  return wrk.format("POST", nil, nil, call)
end

function done(summary)
  local errors = summary.errors
  io.write(string.format('{"calls":%d,"seconds":%f,"failed":%d}\n', summary.requests, summary.duration / 1e6,
    errors.status + errors.connect + errors.read + errors.write + errors.timeout))
end
