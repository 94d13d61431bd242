-- One client a thread, so that a reply belongs to its thread's last request, and every answer can be checked.
-- A client sends the lines of its own file, and keeps the replies; at the end all of them are written down.

local threads = {}

function setup(thread)
   thread:set("place", #threads)
   table.insert(threads, thread)
end

function init()
   wrk.method = "POST"
   wrk.path = os.getenv("LOAD_PATH")
   wrk.headers["Content-Type"] = "application/json"
   wrk.headers["Authorization"] = os.getenv("LOAD_AUTHORIZATION")
   before, after = os.getenv("LOAD_BEFORE"), os.getenv("LOAD_AFTER")
   lines, numbers, replies, at = {}, {}, {}, 0
   for line in io.lines(os.getenv("LOAD_FOLDER") .. "/" .. place) do
      local number, text = line:match("^(%d+)\t(.*)$")
      table.insert(numbers, number)
      table.insert(lines, text)
   end
end

function request()
   at = at % #lines + 1
   return wrk.format(nil, nil, nil, before .. lines[at] .. after)
end

function response(status, _, body)
   table.insert(replies, numbers[at] .. "\t" .. status .. "\t" .. body:gsub("[\r\n]", " "))
end

function done(summary, latency, _)
   local errors = summary.errors
   local out = io.open(os.getenv("LOAD_FOLDER") .. "/replies", "w")
   out:write(string.format(
      '{"requests": %d, "seconds": %f, "broken": %d, "p50_ms": %f, "p99_ms": %f}\n',
      summary.requests, summary.duration / 1e6, errors.connect + errors.read + errors.write + errors.timeout,
      latency:percentile(50) / 1e3, latency:percentile(99) / 1e3))
   for _, thread in ipairs(threads) do
      for _, reply in ipairs(thread:get("replies")) do out:write(reply, "\n") end
   end
   out:close()
end
