-- The calls that wrk sends for bench.py. Arguments: kind of call, number of the run, number of users to choose
-- from, members of createUser in addition to the e-mail and the name, milliseconds between two calls.
local threads = 0

function setup(thread)
  thread:set("number", threads)
  threads = threads + 1
end

function init(args)
  kind, run, users, members, calls = args[1], args[2], tonumber(args[3]), args[4], 0
  rest = tonumber(args[5])
  math.randomseed(tonumber(run) * 64 + number)
end

function delay()
  return rest
end

function request()
  local call
  if kind == "scim_get" then
    return wrk.format("GET", "/scim/v2/Users/" .. math.random(users) + 1)
  elseif kind == "scim_find" then
    local name = "user" .. math.random(users) .. "@example.com"
    return wrk.format("GET", "/scim/v2/Users?filter=userName%20eq%20%22" .. name .. "%22")
  elseif kind == "scim_active" or kind == "active" then
    calls = calls + 1
    local user, active = math.random(users), tostring(calls % 2 == 0)
    if kind == "scim_active" then
      return wrk.format("PATCH", "/scim/v2/Users/" .. user + 1, nil,
        '{"schemas":["urn:ietf:params:scim:api:messages:2.0:PatchOp"],"Operations":[' ..
        '{"op":"replace","path":"active","value":' .. active .. '}]}')
    end
    call = '{"method":"updateUserByEmail","params":{"email":"user' .. user .. '@example.com","isActive":' .. active .. '}}'
  elseif kind == "get" then
    call = '{"method":"getUserByEmail","params":{"email":"user' .. math.random(users) .. '@example.com"}}'
  else
    calls = calls + 1
    call = '{"method":"createUser","params":{"email":"new' .. run .. "-" .. number .. "-" .. calls ..
      '@example.com","displayName":"Bench User",' .. members .. '}}'
  end
  return wrk.format("POST", nil, nil, call)
end

function done(summary, latency)
  local errors = summary.errors
  io.write(string.format('{"calls":%d,"seconds":%f,"failed":%d,"p50":%f,"p99":%f}\n', summary.requests,
    summary.duration / 1e6, errors.status + errors.connect + errors.read + errors.write + errors.timeout,
    latency:percentile(50) / 1e3, latency:percentile(99) / 1e3))
end
