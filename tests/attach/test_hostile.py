#!/usr/bin/env python3
# SPDX-License-Identifier: BSD-3-Clause
"""test_hostile.py: what clients may send wrong, and what the attach socket makes of it."""
import fcntl
import json
import os
import socket
import struct
import subprocess
import sys
import tempfile
import unittest

from harness import (BUILD, MIB, PAGE, Client, Daemon, Ram, attach, fuzz, make_memfd, make_uffd,
                     region)

F_SEAL_FUTURE_WRITE = 0x10


class Base(unittest.TestCase):
    limits = {}

    @classmethod
    def setUpClass(cls):
        cls.daemon = Daemon(**cls.limits)

    @classmethod
    def tearDownClass(cls):
        status, end = cls.daemon.stop()
        assert status == 0 and end == "END held=0", (status, end)

    def setUp(self):
        self.addCleanup(self.all_closed)  # runs last, when the clients are closed

    def all_closed(self):
        self.assertEqual(self.daemon.settle(), 0, "descriptors left open in the daemon")

    def client(self):
        c = Client(self.daemon)
        self.addCleanup(c.close)
        return c

    def ram(self, *memfds):
        r = Ram(*memfds)
        self.addCleanup(r.__exit__)
        return r.fds

    def refused(self, answer, cls, *words):
        self.assertEqual(list(answer), ["error"], answer)
        self.assertEqual(list(answer["error"]), ["class", "desc"])
        self.assertEqual(answer["error"]["class"], cls, answer)
        for word in words:
            self.assertIn(word, answer["error"]["desc"])

    def works(self, name="after"):
        """The daemon still serves a good client."""
        with Client(self.daemon) as c, Ram() as fds:
            self.assertEqual(c.call(attach(name), fds), {"return": {"vm": name, "version": 1}})
            self.assertEqual(c.call({"execute": "detach"}), {"return": {}})

    def attached(self, name="guest1", regions=None, **more):
        c = self.client()
        self.assertEqual(c.call(attach(name, regions, **more), self.ram()),
                         {"return": {"vm": name, "version": 1}})
        return c


class Good(Base):
    def test_01_attach_and_detach(self):
        c = self.attached()
        self.assertEqual(self.daemon.note("attach"),
                         f"attach guest1 uuid=4dd9-1 pid={os.getpid()} uid={os.getuid()} regions=1")
        self.assertEqual(self.daemon.note("region"),
                         f"region ram {0x7F0000000000}+{4 * MIB} page=4096 offset=0 fd=yes "
                         f"guest={2**64 - 1}")
        self.assertEqual(c.call({"execute": "detach"}), {"return": {}})
        self.assertEqual(self.daemon.note("put"), "put guest1")

    def test_02_answer_is_exactly_as_specified(self):
        c = self.client()
        c.send(attach("exact"), self.ram())
        self.assertEqual(c.sock.recv(4096), b'{"return":{"vm":"exact","version":1}}\n')

    def test_03_commands(self):
        c = self.attached("vm3")
        extra = make_memfd(2 * MIB)
        self.addCleanup(os.close, extra)
        add = region("dimm0", 0x7F1000000000, 2 * MIB, memfd=0, guest_addr=4096)
        for message, fds, note in (
                (dict(execute="region-add", arguments=add), [extra], "region-add vm3 dimm0 2097152"),
                (dict(execute="discard", arguments=dict(id="ram", offset=4096, size=8192)), [],
                 "discard vm3 ram 4096+8192"),
                (dict(execute="pin", arguments=dict(id="ram", offset=0, size=4096)), [],
                 "pin vm3 ram 0+4096"),
                (dict(execute="unpin", arguments=dict(id="ram", offset=0, size=4096)), [],
                 "unpin vm3 ram 0+4096"),
                (dict(execute="share", arguments=dict(id="ram", pid=77)), [], "share vm3 ram 77"),
                (dict(execute="share", arguments=dict(id="ram")), [], "share vm3 ram 0"),
                (dict(execute="region-remove", arguments=dict(id="dimm0")), [],
                 "region-remove vm3 dimm0"),
                (dict(execute="region-remove", arguments=dict(id="ram", discard=True)), [],
                 "region-remove vm3 ram discard"),
                (dict(execute="detach", arguments={}), [], "detach vm3")):
            self.assertEqual(c.call(message, fds), {"return": {}})
            self.assertEqual(self.daemon.note(note.split()[0] + " "), note)

    def test_04_several_regions_and_memfds(self):
        a, b = make_memfd(8 * MIB), make_memfd()
        regions = [region("low", 0x7F0000000000, 4 * MIB, memfd=1, memfd_offset=0, guest_addr=0),
                   region("high", 0x7F0000400000, 4 * MIB, memfd=1, memfd_offset=4 * MIB),
                   region("other", 0x7F0001000000, 4 * MIB, memfd=2)]
        c = self.client()
        self.assertIn("return", c.call(attach("multi", regions), self.ram(a, b)))

    def test_05_secondary_keep_requests(self):
        self.attached("sec", secondary=True, keep=True, requests=["zap"])
        self.assertIn(" secondary zap keep regions=1", self.daemon.note("attach sec"))

    def test_06_lends_the_userfaultfd_device(self):
        c = self.client()
        answer = c.call({"execute": "userfaultfd"})
        if "error" in answer:
            self.refused(answer, "Unsupported", "/dev/userfaultfd")
            self.skipTest("this kernel has no /dev/userfaultfd; runs in the lab")
        self.assertEqual(answer, {"return": {}})
        self.assertEqual(len(c.fds), 1)
        uffd = make_uffd(c.fds[0])
        memfd = make_memfd()
        self.assertIn("return", c.call(attach("lent"), [uffd, memfd]))
        os.close(uffd)
        os.close(memfd)

    def test_07_attach_again_after_detach(self):
        c = self.attached("first")
        self.assertIn("return", c.call({"execute": "detach"}))
        self.assertIn("return", c.call(attach("second"), self.ram()))

    def test_08_retry_after_refusal(self):
        c = self.client()
        self.refused(c.call(attach("taken"), self.ram()), "AlreadyExists", "taken")
        self.assertIn("return", c.call(attach("free"), self.ram()))

    def test_11_taken_over(self):
        c = self.client()
        kept = [dict(name="store:0", fd=3), dict(name="table:0", fd=2)]
        self.assertIn("return", c.call(attach("back", keep=True, kept=kept),
                                       self.ram(make_memfd(), make_memfd(), make_memfd())))
        self.assertIn(" keep resume regions=1", self.daemon.note("attach back"))
        self.assertEqual(self.daemon.note("kept"), "kept store:0 open")
        self.assertEqual(self.daemon.note("kept"), "kept table:0 open")

    def test_12_taken_over_with_nothing_kept(self):
        self.attached("bare", keep=True, kept=[])
        self.assertIn(" keep resume regions=1", self.daemon.note("attach bare"))
        self.attached("other", secondary=True, kept=[])
        self.assertIn(" secondary resume regions=1", self.daemon.note("attach other"))

    def test_09_white_space_and_empty_lines(self):
        c = self.client()
        c.send(b"\n \t\r\n  ")
        self.assertIn("return", c.call(b'\n { "execute" : "userfaultfd" } \r\n\n\n'))

    def test_10_half_closed_client_gets_its_answer(self):
        c = self.client()
        c.send(attach("slow-half"), self.ram())
        c.sock.shutdown(socket.SHUT_WR)
        self.assertIn("return", c.line())
        self.assertTrue(c.ended())


class Framing(Base):
    def test_01_one_byte_a_packet(self):
        c = self.client()
        data = json.dumps(attach("bytewise")).encode() + b"\n"
        c.send(data[:1], self.ram())  # the descriptors come with the first byte
        for i in range(1, len(data)):
            c.send(data[i:i + 1])
        self.assertIn("return", c.line())

    def test_02_two_messages_in_one_packet(self):
        c = self.client()
        first = json.dumps(attach("pair")).encode() + b"\n"
        c.send(first + b'{"execute":"nonsense"}\n{"execute":"detach"}\n', self.ram())
        self.assertIn("return", c.line())
        self.refused(c.line(), "CommandNotFound", "nonsense")
        self.assertEqual(c.line(), {"return": {}})

    def test_03_descriptors_go_to_their_own_message(self):
        """A message without descriptors, and right behind it one with: never mixed up."""
        c = self.attached("order")
        extra = make_memfd(2 * MIB)
        self.addCleanup(os.close, extra)
        discard = dict(execute="discard", arguments=dict(id="ram", offset=0, size=4096))
        add = dict(execute="region-add",
                   arguments=region("d", 0x7F1000000000, 2 * MIB, memfd=0))
        for _ in range(20):
            c.send(discard)
            c.send(add, [extra])
            c.send(discard)
        for i in range(60):
            self.assertEqual(c.line(), {"return": {}}, i)

    def test_04_truncated_at_every_byte(self):
        data = json.dumps(attach("cut")).encode() + b"\n"
        fds = self.ram()
        for i in range(len(data)):
            with Client(self.daemon) as c:
                c.send(data[:i] or b" ", fds)
                c.sock.shutdown(socket.SHUT_WR)
                self.refused(c.line(), "ProtocolError", "cut off")
                self.assertTrue(c.ended())
        self.works()

    def test_05_oversized_line(self):
        for head in (b"{", b'{"execute":"' + b"x" * 100):
            c = self.client()
            try:
                c.send(head + b" " * (1 << 20))
            except (BrokenPipeError, ConnectionResetError):
                pass
            self.refused(c.line(), "ProtocolError", "longer than 65536 bytes")
            self.assertTrue(c.ended())
        self.works()

    def test_06_longest_line_is_taken(self):
        c = self.client()
        line = b'{"execute":"userfaultfd"'
        c.send(line + b" " * (65536 - len(line) - 2) + b"}\n")
        self.assertIn("return", c.line())

    def test_07_no_json(self):
        c = self.client()
        for line in (b"{", b"{}}", b'{"a":}', b"{'a':1}", b'{"execute":"x","execute":"y"}',
                     b'{"execute":"\xff\xfe"}', b'{"execute":"\x00"}', b'{"execute":"\\u0000"}',
                     b'{"a":' + b"[" * 3000 + b"]" * 3000 + b"}", b'{"a":1e999}',
                     b'{"a":99999999999999999999}', b"{} trailing"):
            self.refused(c.call(line + b"\n"), "ProtocolError", "no JSON")
        self.assertIn("return", c.call({"execute": "userfaultfd"}))

    def test_08_other_first_bytes(self):
        for first in (b"GET / HTTP/1.1\r\n\r\n", b"\x00", b'"text"\n', b"\xff" * 100, b"1\n",
                      b"  x"):
            c = self.client()
            c.send(first)
            self.refused(c.line(), "ProtocolError", "begins with", "0x%02x" % first.strip(b" ")[0])
            self.assertTrue(c.ended())

    def test_09_firecracker_is_closed_cleanly(self):
        for n in range(2):
            c = self.client()
            c.send(b'[{"base_host_virt_addr":140000000000,"size":4096,"offset":0,'
                   b'"page_size":4096,"page_size_kib":4096}]', self.ram()[:n])
            self.assertTrue(c.ended())
        self.works()

    def test_10_top_level_of_the_wrong_kind(self):
        c = self.client()
        self.assertIn("return", c.call({"execute": "userfaultfd"}))
        for line in (b"[1]", b"1", b'"attach"', b"null", b"true"):
            answer = c.call(line + b"\n")
            self.assertIn(answer["error"]["class"], ("ProtocolError", "InvalidArgument"))

    def test_11_surplus_of_descriptors(self):
        c = self.client()
        fds = [make_memfd(PAGE)] * 253
        self.addCleanup(os.close, fds[0])
        self.refused(c.call({"execute": "userfaultfd"}, fds), "InvalidArgument",
                     "253 descriptors")
        data = b'{"execute":"userfaultfd"}\n'
        try:  # in several packets of one message: more than one message may have
            for i in range(4):
                c.send(data[i:i + 1], fds[:100])
        except ConnectionError:
            pass  # refused at the third
        self.refused(c.line(), "LimitExceeded", "descriptors were lost")
        self.assertTrue(c.ended())
        self.works()


class Commands(Base):
    def test_01_unknown_command(self):
        c = self.client()
        for name in ("", "Attach", "attach ", "quit", "x" * 1000, "\u00e4", "\n"):
            self.refused(c.call({"execute": name}), "CommandNotFound", "no command")

    def test_02_message_members(self):
        c = self.client()
        self.refused(c.call({}), "InvalidArgument", "execute is missing")
        self.refused(c.call({"execute": 7}), "InvalidArgument", "execute is not a string")
        self.refused(c.call({"execute": "detach", "id": 1}), "InvalidArgument",
                     'unknown member "id" in the message')
        self.refused(c.call({"execute": "detach", "arguments": 5}), "InvalidArgument",
                     "arguments is an integer, not an object")
        self.refused(c.call({"execute": "detach", "arguments": {"force": True}}),
                     "InvalidArgument", 'unknown member "force" in arguments')
        self.refused(c.call({"execute": "userfaultfd", "arguments": {"x": 1}}),
                     "InvalidArgument", 'unknown member "x" in arguments')

    def test_03_before_attaching(self):
        c = self.client()
        args = dict(id="ram", offset=0, size=4096)
        for name in ("discard", "pin", "unpin"):
            self.refused(c.call(dict(execute=name, arguments=args)), "ProtocolError",
                         "nothing is attached")
        self.refused(c.call({"execute": "detach"}), "ProtocolError", "nothing is attached")
        self.refused(c.call(dict(execute="region-remove", arguments=dict(id="x"))),
                     "ProtocolError", "nothing is attached")
        add = dict(execute="region-add", arguments=region(memfd=0))
        self.refused(c.call(add, self.ram()[1:]), "ProtocolError", "nothing is attached")

    def test_04_attached_twice(self):
        c = self.attached("once")
        self.refused(c.call(attach("twice"), self.ram()), "Busy", "once already")
        self.assertIn("return", c.call({"execute": "detach"}))

    def test_05_ranges(self):
        c = self.attached("ranges")
        for args, words in ((dict(id="ram", offset=0), "arguments.size is missing"),
                            (dict(id="ram", size=1), "arguments.offset is missing"),
                            (dict(offset=0, size=1), "arguments.id is missing"),
                            (dict(id="ram", offset=0, size=0), "arguments.size is 0"),
                            (dict(id="ram", offset=-1, size=1), "arguments.offset is negative"),
                            (dict(id="ram", offset=0.5, size=1), "fraction"),
                            (dict(id="ram", offset="0", size=1), "a string, not an integer"),
                            (dict(id="ram", offset=2**63 - 4096, size=4097), "wraps around"),
                            (dict(id=5, offset=0, size=1), "arguments.id is an integer"),
                            (dict(id="ram", offset=0, size=1, force=1), 'unknown member "force"')):
            for name in ("discard", "pin", "unpin"):
                self.refused(c.call(dict(execute=name, arguments=args)), "InvalidArgument", words)
        for name in ("discard", "pin", "unpin", "region-remove", "region-add"):
            fds = self.ram()[1:] if name == "region-add" else []
            self.refused(c.call(dict(execute=name), fds), "InvalidArgument",
                         "arguments is missing")

    def test_06_descriptors_where_none_belong(self):
        c = self.attached("nofds")
        fds = self.ram()
        args = dict(id="ram", offset=0, size=4096)
        for message in ([dict(execute=n, arguments=args) for n in ("discard", "pin", "unpin")] +
                        [dict(execute="detach"), dict(execute="userfaultfd"),
                         dict(execute="region-remove", arguments=dict(id="ram"))]):
            self.refused(c.call(message, fds), "InvalidArgument", message["execute"],
                         "came with 2 descriptors, where 0 are needed")
        add = dict(execute="region-add", arguments=region(memfd=0))
        self.refused(c.call(add), "InvalidArgument", "0 descriptors, where 1 are needed")
        self.refused(c.call(add, fds), "InvalidArgument", "2 descriptors, where 1 are needed")

    def test_07_region_remove(self):
        c = self.attached("removing")
        remove = lambda **args: dict(execute="region-remove", arguments=args)
        self.refused(c.call(remove(id="ram", discard=1)), "InvalidArgument",
                     "arguments.discard is an integer, not a boolean")
        self.refused(c.call(remove(discard=True)), "InvalidArgument", "arguments.id is missing")

    def test_08_region_add(self):
        c = self.attached("adding")
        fds = self.ram()
        add = lambda **change: dict(execute="region-add",
                                    arguments=region(**{"memfd": 0, **change}))
        self.refused(c.call(add(memfd=1), fds[1:]), "InvalidArgument", "memfd is 1")
        self.refused(c.call(add(size=4 * MIB + PAGE), fds[1:]), "InvalidArgument", "of its file")
        self.refused(c.call(add(), fds[:1]), "InvalidArgument", "neither a memfd nor")
        self.refused(c.call(add(more=1), fds[1:]), "InvalidArgument", 'unknown member "more"')


class Attaching(Base):
    def bad(self, cls, *words, fds=None, **change):
        c = self.client()
        message = attach()
        message["arguments"].update(change)
        self.refused(c.call(message, fds if fds is not None else self.ram()), cls, *words)
        # The connection is still good for a better try.
        self.assertIn("return", c.call(attach("retry"), self.ram()))

    def test_01_members_missing_and_unknown(self):
        for name in ("version", "vm", "regions"):
            message = attach()
            del message["arguments"][name]
            self.refused(self.client().call(message, self.ram()), "InvalidArgument",
                         f"arguments.{name} is missing")
        for name in ("id", "host_addr", "size", "page_size", "memfd", "memfd_offset"):
            r = region()
            del r[name]
            self.bad("InvalidArgument", f"arguments.regions[0].{name} is missing", regions=[r])
        self.bad("InvalidArgument", 'unknown member "colour" in arguments', colour=1)
        self.bad("InvalidArgument", 'unknown member "colour" in arguments.regions[0]',
                 regions=[region(colour=1)])
        self.bad("InvalidArgument", 'unknown member "colour" in arguments.vm',
                 vm=dict(name="x", colour=1))
        self.bad("InvalidArgument", "arguments.vm.name is missing", vm={})

    def test_02_wrong_types(self):
        for name, values in dict(version=("1", 1.0, None, [], True), vm=("x", 1, [], None),
                                 regions=({}, "x", 1, None), secondary=(1, "yes", None),
                                 keep=(1, {}, None), requests=("zap", {}, 1, None)).items():
            for value in values:
                self.bad("InvalidArgument", f"arguments.{name} is", **{name: value})
        for name, values in dict(id=(1, None, []), host_addr=("1", 1.5, None, [], True),
                                 size=("1", 1.5, {}), page_size=("4k", 4096.0),
                                 memfd=("1", 1.0), memfd_offset=("0", None),
                                 guest_addr=("0", 0.0)).items():
            for value in values:
                self.bad("InvalidArgument", f"regions[0].{name} is",
                         regions=[region(**{name: value})])
        self.bad("InvalidArgument", "regions[1] is an integer, not an object",
                 regions=[region(), 5])
        self.bad("InvalidArgument", "requests[0] is not a string", requests=[5])
        self.bad("InvalidArgument", 'no request "fly"', requests=["zap", "fly"])

    def test_03_numbers_out_of_range(self):
        for name in ("host_addr", "size", "page_size", "memfd", "memfd_offset", "guest_addr"):
            self.bad("InvalidArgument", f"regions[0].{name} is negative",
                     regions=[region(**{name: -4096})])
            text = json.dumps(attach(regions=[region(**{name: 12345678})]))
            for number in ("9223372036854775808", "18446744073709551616", "1e400"):
                line = text.replace("12345678", number).encode() + b"\n"
                self.refused(self.client().call(line, self.ram()), "ProtocolError", "no JSON")
        for version in (0, 2, 2**63 - 1):
            self.bad("Unsupported", f"arguments.version is {version}", version=version)
        self.bad("InvalidArgument", "arguments.version is negative", version=-1)

    def test_04_names(self):
        for name, words in (("", "is empty"), ("x" * 64, "longer than 63"),
                            ("x" * 60000, "longer than 63"), ("a\nb", "not printable"),
                            ("a\tb", "not printable"), ("\u00fcber", "not printable"),
                            ("\x7f", "not printable"), (" a", "begins or ends"),
                            ("a ", "begins or ends")):
            self.bad("InvalidArgument", "arguments.vm.name", words, vm=dict(name=name))
            if len(name) < 1000:
                self.bad("InvalidArgument", "regions[0].id", words, regions=[region(id=name)])
        self.bad("InvalidArgument", "arguments.vm.uuid is longer than 39",
                 vm=dict(name="x", uuid="0" * 40))
        self.bad("InvalidArgument", "arguments.vm.pid is negative", vm=dict(name="x", pid=-1))
        self.bad("AlreadyExists", "taken", vm=dict(name="taken"))
        self.attached("x" * 63)

    def test_05_regions_by_themselves(self):
        top = 2**63
        for change, words in ((dict(size=0), "size is 0"),
                              (dict(size=PAGE + 1), "size 4097 is not a multiple"),
                              (dict(host_addr=0x7F0000000800), "host_addr"),
                              (dict(memfd_offset=512), "memfd_offset 512 is not a multiple"),
                              (dict(page_size=0), "page_size 0 is neither"),
                              (dict(page_size=8192), "page_size 8192 is neither"),
                              (dict(page_size=2**33 + 4096), "is neither 4096 nor 2097152"),
                              (dict(page_size=2 * MIB, size=PAGE), "size 4096 is not a multiple"),
                              (dict(host_addr=top - PAGE, size=2 * PAGE), "host_addr + size wraps"),
                              (dict(memfd_offset=top - PAGE, size=2 * PAGE),
                               "memfd_offset + size wraps"),
                              (dict(guest_addr=top - PAGE, size=2 * PAGE),
                               "guest_addr + size wraps"),
                              (dict(size=top - PAGE, host_addr=2 * PAGE),
                               "host_addr + size wraps")):
            self.bad("InvalidArgument", "region ram", words, regions=[region(**change)])
        self.bad("Unsupported", "1 GiB", regions=[region(page_size=1 << 30, size=1 << 30,
                                                         host_addr=1 << 40)])
        self.bad("InvalidArgument", "arguments.regions is empty", regions=[])
        self.bad("LimitExceeded", "65 entries",
                 regions=[region(f"r{i}", 0x7F0000000000 + i * PAGE, PAGE, memfd_offset=i * PAGE)
                          for i in range(65)])

    def test_06_regions_together(self):
        a = region("a", 0x7F0000000000, 2 * MIB)
        for host_addr in (0x7F0000000000, 0x7F0000000000 + 2 * MIB - PAGE,
                          0x7F0000000000 - 2 * MIB + PAGE):
            b = region("b", host_addr, 2 * MIB, memfd_offset=2 * MIB)
            self.bad("InvalidArgument", "regions a and b overlap in the process", regions=[a, b])
        for offset in (0, 2 * MIB - PAGE):
            b = region("b", 0x7F1000000000, 2 * MIB, memfd_offset=offset)
            self.bad("InvalidArgument", "regions a and b overlap in their file", regions=[a, b])
        self.bad("InvalidArgument", "two regions have the id a",
                 regions=[a, region("a", 0x7F1000000000, 2 * MIB, memfd_offset=2 * MIB)])
        # The same file by two descriptors is still the same file.
        memfd = make_memfd()
        b = region("b", 0x7F1000000000, 2 * MIB, memfd=2)
        self.bad("InvalidArgument", "overlap in their file", regions=[a, b],
                 fds=self.ram(memfd, os.dup(memfd)))

    def test_07_64_regions_are_taken(self):
        regions = [region(f"r{i}", 0x7F0000000000 + i * PAGE, PAGE, memfd_offset=i * PAGE)
                   for i in range(64)]
        self.attached("many", regions)

    def test_08_number_of_descriptors(self):
        fds = self.ram()
        for n in (0, 1):
            self.bad("InvalidArgument", f"{n} descriptors, where at least 2", fds=fds[:n])
        self.bad("InvalidArgument", "descriptor 2 is named by no region", fds=fds + fds[1:])
        self.bad("InvalidArgument", "memfd is 0, which is the userfaultfd",
                 regions=[region(memfd=0)])
        for index in (2, 253, 2**31, 2**62):
            self.bad("InvalidArgument", "but the message carries 2 descriptors",
                     regions=[region(memfd=index)])

    def test_09_descriptor_0_is_no_userfaultfd(self):
        pair = socket.socketpair()
        with open("/dev/null") as null, tempfile.TemporaryFile() as file:
            for fd in (null.fileno(), file.fileno(), pair[0].fileno(), self.ram()[1]):
                self.bad("InvalidArgument", "descriptor 0 is no userfaultfd",
                         fds=[fd, self.ram()[1]])
        for s in pair:
            s.close()

    def test_10_memory_of_the_wrong_kind(self):
        uffd = self.ram()[0]
        pair = socket.socketpair()
        with open("/dev/null", "r+") as null:
            for fd in (null.fileno(), pair[0].fileno(), uffd):
                self.bad("InvalidArgument", "descriptor 1 is neither", fds=[uffd, fd])
        for s in pair:
            s.close()
        directory = os.open("/dev/shm", os.O_RDONLY)
        self.bad("InvalidArgument", "descriptor 1 is neither", fds=[uffd, directory])
        os.close(directory)
        program = os.open(sys.executable, os.O_RDONLY)
        self.bad("InvalidArgument", "descriptor 1 is neither", fds=[uffd, program])
        os.close(program)

    def test_11_memory_that_cannot_be_punched(self):
        uffd = self.ram()[0]
        for seals, name in ((fcntl.F_SEAL_WRITE, "F_SEAL_WRITE"),
                            (F_SEAL_FUTURE_WRITE, "F_SEAL_FUTURE_WRITE")):
            memfd = make_memfd(seals=seals)
            self.bad("InvalidArgument", "sealed against writing", name, fds=[uffd, memfd])
            os.close(memfd)
        memfd = make_memfd()
        for flags, words in ((os.O_RDONLY, "not open for reading and writing"),
                             (os.O_WRONLY, "not open for reading and writing"),
                             (os.O_PATH, "O_PATH")):
            other = os.open(f"/proc/self/fd/{memfd}", flags)
            self.bad("InvalidArgument", words, fds=[uffd, other])
            os.close(other)
        os.close(memfd)

    def test_12_beyond_the_end_of_the_file(self):
        for change in (dict(size=4 * MIB + PAGE), dict(memfd_offset=PAGE),
                       dict(memfd_offset=2**62), dict(size=2**62, host_addr=0)):
            self.bad("InvalidArgument", "of its file, which has 4194304 bytes",
                     regions=[region(**change)])

    def test_13_page_size_of_the_file(self):
        self.bad("InvalidArgument", "page_size is 2097152, but its file has pages of 4096",
                 regions=[region(page_size=2 * MIB)])

    def test_14_page_size_of_hugetlb(self):
        try:
            memfd = os.memfd_create("huge", os.MFD_CLOEXEC | os.MFD_HUGETLB | os.MFD_HUGE_2MB)
        except OSError:
            self.skipTest("no hugetlb memfds here; runs in the lab")
        os.ftruncate(memfd, 4 * MIB)
        uffd = self.ram()[0]
        self.bad("InvalidArgument", "page_size is 4096, but its file has pages of 2097152",
                 fds=[uffd, memfd])
        c = self.client()
        self.assertIn("return", c.call(attach("huge", [region(page_size=2 * MIB)]), [uffd, memfd]))
        os.close(memfd)

    def test_15_a_file_on_tmpfs_is_taken(self):
        with tempfile.TemporaryFile(dir="/dev/shm") as file:
            os.ftruncate(file.fileno(), 4 * MIB)
            c = self.client()
            self.assertIn("return", c.call(attach("shm"), [self.ram()[0], file.fileno()]))


class Kept(Base):
    """State that comes back from a client."""

    def bad(self, cls, words, kept, memfds=2, regions=None, **more):
        fds = self.ram(*(make_memfd() for _ in range(memfds)))
        more = more or dict(keep=True)
        self.refused(self.client().call(attach("k", regions, kept=kept, **more), fds), cls, words)

    def tearDown(self):
        self.works()

    def test_01_only_for_who_keeps_or_is_secondary(self):
        for kept in ([], [dict(name="a", fd=2)]):
            self.bad("InvalidArgument", "arguments.kept is only for", kept, keep=False)

    def test_02_wrong_types(self):
        for value in ({}, "x", 1, None):
            self.bad("InvalidArgument", "arguments.kept is", value)
        for value in (5, "x", None, []):
            self.bad("InvalidArgument", "arguments.kept[0] is", [value])
        for value in (1, None, [], {}):
            self.bad("InvalidArgument", "kept[0].name is", [dict(name=value, fd=2)])
        for value in ("2", 2.0, None, True):
            self.bad("InvalidArgument", "kept[0].fd is", [dict(name="a", fd=value)])
        self.bad("InvalidArgument", "kept[0].fd is missing", [dict(name="a")])
        self.bad("InvalidArgument", "kept[0].name is missing", [dict(fd=2)])
        self.bad("InvalidArgument", "bytes", [dict(name="a", fd=2, bytes=1)])

    def test_03_names(self):
        for name, words in (("", "is empty"), ("x" * 64, "longer than 63"),
                            ("a\nb", "not printable"), (" a", "begins or ends")):
            self.bad("InvalidArgument", words, [dict(name=name, fd=2)])
        self.bad("InvalidArgument", "kept has a twice",
                 [dict(name="a", fd=2), dict(name="a", fd=3)], memfds=3)

    def test_04_descriptors(self):
        self.bad("InvalidArgument", "kept a: fd is 0, which is the userfaultfd",
                 [dict(name="a", fd=0)])
        self.bad("InvalidArgument", "kept[0].fd is negative", [dict(name="a", fd=-1)])
        for fd in (3, 2**31, 2**63 - 1):
            self.bad("InvalidArgument", "not among the message's descriptors",
                     [dict(name="a", fd=fd)])
        self.bad("InvalidArgument", "kept a: descriptor 1 is named twice", [dict(name="a", fd=1)])
        self.bad("InvalidArgument", "kept b: descriptor 2 is named twice",
                 [dict(name="a", fd=2), dict(name="b", fd=2)])
        self.bad("InvalidArgument", "descriptor 2 is named by no region", [])
        self.bad("InvalidArgument", "descriptor 3 is named by no region", [dict(name="a", fd=2)],
                 memfds=3)

    def test_05_too_many(self):
        self.bad("LimitExceeded", "65 entries", [dict(name=f"s{i}", fd=2) for i in range(65)])

    def test_06_64_are_taken(self):
        c = self.client()
        kept = [dict(name=f"s{i}", fd=2 + i) for i in range(64)]
        fds = self.ram(*(make_memfd(PAGE) if i else make_memfd() for i in range(65)))
        self.assertIn("return", c.call(attach("many", keep=True, kept=kept), fds))

    def test_07_files_that_could_block(self):
        a, b = os.pipe()
        self.addCleanup(os.close, a)
        self.addCleanup(os.close, b)
        for path, flags in ((None, 0), ("/proc/self/status", os.O_RDONLY), ("/", os.O_RDONLY),
                            ("/dev/shm", os.O_PATH)):
            fd = os.open(path, flags) if path else os.dup(a)
            c = self.client()
            fds = self.ram(make_memfd(), fd)
            self.refused(c.call(attach("k", keep=True, kept=[dict(name="a", fd=2)]), fds),
                         "InvalidArgument", "descriptor 2")

    def test_08_read_only_is_taken(self):
        memfd = make_memfd(PAGE)
        self.addCleanup(os.close, memfd)
        fd = os.open(f"/proc/self/fd/{memfd}", os.O_RDONLY)
        c = self.client()
        self.assertIn("return", c.call(attach("ro", keep=True, kept=[dict(name="a", fd=2)]),
                                       self.ram(make_memfd(), fd)))


class Concurrent(Base):
    def test_01_thousand_connections(self):
        for i in range(1000):
            c = Client(self.daemon)
            try:
                if i % 3 == 1:
                    c.send(b'{"exe')
                elif i % 3 == 2:
                    c.send(b'{"execute":"detach"}\n')
            except ConnectionError:
                pass  # one too many of those that have not attached
            c.close()
        self.all_closed()
        self.works()

    def test_02_vanishing_while_it_is_attached(self):
        for i in range(10):
            c = Client(self.daemon)
            with Ram() as fds:
                c.send(attach(f"slow{i}"), fds)
            c.close()
        for i in range(10):
            self.daemon.note("put slow")

    def test_03_a_long_request_delays_nobody_else(self):
        long = self.attached("long")
        long.send(dict(execute="region-remove", arguments=dict(id="slow")))
        self.daemon.note("region-remove long slow")
        self.works("meanwhile")
        self.assertTrue(long.quiet(), "answered before it was done")
        # What comes after it on the same connection waits; the daemon's end cancels it.
        long.send(dict(execute="discard", arguments=dict(id="ram", offset=0, size=4096)))
        self.works("meanwhile2")
        self.assertTrue(long.quiet())
        cls = type(self)
        self.addCleanup(setattr, cls, "daemon", Daemon())
        status, end = self.daemon.stop()
        self.assertEqual((status, end), (0, "END held=0"))

    def test_04_closing_that_blocks_delays_nobody_else(self):
        """close() of a TCP socket that lingers blocks for as long as its peer does not read."""
        server = socket.create_server(("127.0.0.1", 0))
        tcp = socket.create_connection(server.getsockname())
        peer, _ = server.accept()
        tcp.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 600))
        tcp.setblocking(False)
        try:
            while True:
                tcp.send(b"x" * 65536)
        except BlockingIOError:
            pass
        tcp.setblocking(True)
        c = self.client()
        # The descriptor goes with the half of a line: the daemon cannot be done with it, and so
        # leave the last close, which blocks, to this side, before it is closed here.
        c.send(b'{"execute":', [tcp.fileno()])
        tcp.close()
        c.send(b'"nonsense"}\n')
        self.works("meanwhile")
        self.works("meanwhile2")
        peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        peer.close()  # a reset: lingering ends
        server.close()
        self.refused(c.line(), "CommandNotFound", "nonsense")

    def test_05_answers_not_read(self):
        """The client never reads: what it is sent stays bounded, then it is dropped."""
        c = self.client()
        c.sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 20)
        c.sock.setblocking(False)
        sent = 0
        try:
            while sent < 64 << 20:
                sent += c.sock.send(b'{"execute":"nonsense"}\n' * 1000)
        except (BlockingIOError, ConnectionError):
            pass
        self.assertLess(sent, 64 << 20)
        self.works()

    def test_06_random_mutations(self):
        rounds = fuzz(self.daemon, self.ram(), 3)
        self.assertGreater(rounds, 10)
        self.works()


class Requests(Base):
    limits = dict(request_ms=300)
    expected = ('{"execute":"zap","arguments":{"ranges":[[140000000000,4096],'
                '[140000008192,8192]]},"id":%d}')
    pin = dict(execute="pin", arguments=dict(id="zap0", offset=0, size=4096))

    def zap_line(self, c, id):
        c.send(self.pin)
        message = c.line()
        self.assertEqual(json.dumps(message, separators=(",", ":")), self.expected % id)

    def test_01_client_that_serves(self):
        c = self.attached("serves", requests=["zap"])
        for id in (1, 2, 3):
            self.zap_line(c, id)
            c.send({"return": {}, "id": id})
            self.assertEqual(c.line(), {"return": {}})

    def test_02_client_that_serves_none_is_asked_nothing(self):
        c = self.attached("plain")
        self.refused(c.call(self.pin), "GenericError", "zap:")

    def test_03_client_that_never_answers(self):
        c = self.attached("mute", requests=["zap"])
        self.zap_line(c, 1)
        self.refused(c.line(), "GenericError", "zap: Connection timed out")
        c.send({"return": {}, "id": 1})  # late: dropped
        self.zap_line(c, 2)
        c.send({"return": {}, "id": 2})
        self.assertEqual(c.line(), {"return": {}})

    def test_04_client_that_says_no(self):
        c = self.attached("no", requests=["zap"])
        self.zap_line(c, 1)
        c.send({"error": {"class": "GenericError", "desc": "no"}, "id": 1})
        self.refused(c.line(), "GenericError", "zap: Input/output error")

    def test_05_wrong_answers(self):
        c = self.attached("wrong", requests=["zap"])
        self.refused(c.call({"return": {}, "id": 7}), "ProtocolError", "id 7")
        self.refused(c.call({"return": {}, "id": 0}), "ProtocolError", "id 0")
        self.refused(c.call({"return": {}}), "InvalidArgument", "id is missing")
        self.refused(c.call({"return": {}, "id": "1"}), "InvalidArgument", "id is a string")
        self.refused(c.call({"return": {}, "error": {}, "id": 1}), "InvalidArgument", "not both")
        self.refused(c.call({"return": {}, "id": 1, "x": 1}), "InvalidArgument", '"x"')
        with Client(self.daemon) as other:
            self.refused(other.call({"return": {}, "id": 1}), "ProtocolError", "id 1")
        # A wrong answer while a request waits does not end that request.
        self.zap_line(c, 1)
        c.send({"return": {}, "id": 2})
        c.send({"return": {}, "id": 1})
        self.refused(c.line(), "ProtocolError", "id 2")
        self.assertEqual(c.line(), {"return": {}})

    def test_06_gone_while_asked(self):
        c = self.attached("gone", requests=["zap"])
        self.zap_line(c, 1)
        c.close()
        self.assertEqual(self.daemon.note("zapped gone"), "zapped gone -107")
        self.daemon.note("put gone")


class Keeping(Base):
    limits = dict(request_ms=300)

    def ask(self, c, id, kind="keep"):
        """Has the engine ask, and checks what comes."""
        c.send(dict(execute="pin", arguments=dict(id=kind + "0", offset=0, size=4096)))
        arguments = dict(name="table:0", size=8192) if kind == "keep" else dict(name="table:0")
        self.assertEqual(c.line(), dict(execute=kind, arguments=arguments, id=id))
        self.assertEqual(len(c.fds), 1 if kind == "keep" else 0)
        while c.fds:
            os.close(c.fds.pop())

    def test_01_keep_and_unkeep(self):
        c = self.attached("keeps", keep=True)
        for id, kind in ((1, "keep"), (2, "keep"), (3, "unkeep")):
            self.ask(c, id, kind)
            c.send({"return": {}, "id": id})
            self.assertEqual(c.line(), {"return": {}})

    def test_02_client_that_did_not_ask_is_given_nothing(self):
        for more in ({}, dict(requests=["zap"]), dict(keep=False)):
            with self.subTest(more), Client(self.daemon) as c:
                self.assertIn("return", c.call(attach("plain", **more), self.ram()))
                self.refused(c.call(dict(execute="pin", arguments=dict(
                    id="keep0", offset=0, size=4096))), "GenericError", "keep:")
                self.assertEqual(c.fds, [])

    def test_03_client_that_keeps_only_is_not_asked_to_zap(self):
        c = self.attached("only", keep=True)
        self.refused(c.call(Requests.pin), "GenericError", "zap:")

    def test_04_client_that_never_answers(self):
        c = self.attached("mute", keep=True)
        self.ask(c, 1)
        self.refused(c.line(), "GenericError", "keep: Connection timed out")

    def test_05_client_that_does_not_read(self):
        c = self.attached("deaf", keep=True)
        for _ in range(20):
            c.send(dict(execute="pin", arguments=dict(id="keep0", offset=0, size=4096)))
        self.assertEqual(self.daemon.note("kept deaf"), "kept deaf -110")
        c.close()

    def test_06_gone_while_asked(self):
        c = self.attached("gone", keep=True)
        self.ask(c, 1)
        c.close()
        self.assertEqual(self.daemon.note("kept gone"), "kept gone -107")

    def test_07_taken_over_by_the_next_daemon(self):
        with subprocess.Popen([os.path.join(BUILD, "tests/attach/native_client")], text=True,
                              stdin=subprocess.PIPE, stdout=subprocess.PIPE) as p:
            def do(words, answer="OK"):
                p.stdin.write(words + "\n")
                p.stdin.flush()
                self.assertEqual(p.stdout.readline().rstrip("\n"), answer)

            first, second = Daemon(), Daemon()
            do(f"connect {first.path}")
            do("ram r 4194304 shmem")
            do("attach vm keep r")
            do("pin keep0 0 4096")
            do("kept", "OK 1")
            first.proc.kill()
            first.proc.wait()
            do(f"resume {first.path} vm keep r",
               "ERR errno 111: Connection refused")
            do(f"resume {second.path} taken keep r",
               "ERR AlreadyExists: there is a VM taken already")
            do(f"resume {second.path} vm keep r")
            self.assertIn(" keep resume regions=1", second.note("attach vm"))
            self.assertEqual(second.note("kept"), "kept table:0 open")
            do("pin unkeep0 0 4096")
            do("kept", "OK 0")
            p.stdin.close()
            self.assertEqual(second.stop(), (0, "END held=0"))
        first.proc.stdout.close()
        first.dir.cleanup()


class Slow(Base):
    limits = dict(attach_ms=400, message_ms=200)

    def test_01_never_attaches(self):
        c = self.client()
        self.refused(c.line(), "ProtocolError", "nothing attached within 400 ms")
        self.assertTrue(c.ended())

    def test_02_drips(self):
        c = self.client()
        c.send(b'{"exec')
        self.refused(c.line(), "ProtocolError", "not complete after 200 ms")
        self.assertTrue(c.ended())

    def test_03_requests_do_not_prolong_it(self):
        c = self.client()
        answers = 0
        while True:
            try:
                answer = c.call({"execute": "userfaultfd"})
            except ConnectionError:
                answer = None
            if answer is None:
                break
            answers += 1
            if "error" in answer and "nothing attached" in answer["error"]["desc"]:
                break
        self.assertGreater(answers, 0)

    def test_04_attached_clients_may_be_silent(self):
        c = self.attached("silent")
        self.refused(self.client().line(), "ProtocolError", "nothing attached")  # that long
        self.assertEqual(c.call({"execute": "detach"}), {"return": {}})

    def test_05_an_attached_client_drips(self):
        c = self.attached("drip")
        c.send(b'{"execute":')
        self.refused(c.line(), "ProtocolError", "not complete")
        self.assertTrue(c.ended())
        self.daemon.note("put drip")


class Limits(Base):
    limits = dict(connections=12, per_uid=10, pending=4, held_fds=6, mode="0666")

    def test_01_pending(self):
        clients = [self.client() for _ in range(4)]
        for c in clients:
            self.assertIn("return", c.call({"execute": "userfaultfd"}))
        over = self.client()
        self.refused(over.line(), "LimitExceeded", "have not attached")
        self.assertTrue(over.ended())
        self.assertIn("return", clients[0].call(attach("p0"), self.ram()))
        self.assertIn("return", self.client().call({"execute": "userfaultfd"}))

    def test_02_of_one_user(self):
        for i in range(10):
            self.attached(f"u{i}")
        over = self.client()
        self.refused(over.line(), "LimitExceeded", f"user {os.getuid()} has 10 connections")
        if os.getuid() == 0:
            self.other_user(b"return")

    def other_user(self, expected):
        """Another user is let in while this one is at its limit."""
        pid = os.fork()
        if pid == 0:
            status = 1
            try:
                os.chmod(self.daemon.dir.name, 0o755)
                os.setgroups([])
                os.setuid(65534)
                s = socket.socket(socket.AF_UNIX)
                s.connect(self.daemon.path)
                s.sendall(b'{"execute":"userfaultfd"}\n')
                status = 0 if expected in s.recv(4096) else 1
            finally:
                os._exit(status)
        self.assertEqual(os.waitpid(pid, 0)[1], 0)

    def test_03_descriptors_held(self):
        fds = [make_memfd(PAGE)] * 7
        self.addCleanup(os.close, fds[0])
        a, b = self.client(), self.client()
        a.send(b"{", fds[:4])
        b.send(b"{", fds[:3])
        self.refused(b.line() or a.line(), "LimitExceeded", "more than 6 descriptors")
        a.close()
        b.close()
        self.assertEqual(self.daemon.settle(), 0)
        self.works()


class NoDevice(Base):
    limits = dict(uffd_device="/nonexistent")

    def test_01_says_so(self):
        self.refused(self.client().call({"execute": "userfaultfd"}), "Unsupported",
                     "/nonexistent", "no userfaultfd device")


if __name__ == "__main__":
    unittest.main(verbosity=2)
